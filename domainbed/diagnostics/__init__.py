"""Diagnostics: how consistent the domains of a trained run are, and what its gradients say."""

from domainbed.config.run_fields import CURVATURES, DiagnosisOptions
from domainbed.diagnostics.diagnosis import Diagnosis, diagnose

__all__ = ["CURVATURES", "Diagnosis", "DiagnosisOptions", "diagnose"]
