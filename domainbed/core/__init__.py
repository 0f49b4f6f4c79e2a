"""What any module may use: files, registries, plug-ins, seeds, YAML, names, text."""
