"""One module a target; each has ``export(plan, model) -> Export`` and is named in ``amptune.export.registry``."""
