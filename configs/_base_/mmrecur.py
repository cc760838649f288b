# Import the package, which registers its backbones, hooks and losses by name.
custom_imports = dict(imports=['mmrecur'], allow_failed_imports=False)
