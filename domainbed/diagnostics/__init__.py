"""Diagnostics: how consistent the domains of a trained run are, and what its gradients say."""

from domainbed.diagnostics.curvature import CURVATURES
from domainbed.diagnostics.diagnosis import Diagnosis, DiagnosisOptions, diagnose

__all__ = ["CURVATURES", "Diagnosis", "DiagnosisOptions", "diagnose"]
