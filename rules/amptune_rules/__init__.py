"""The built-in rules: ``source`` holds one rule of ``amptune lint`` a file, ``graph`` one of ``amptune analyze``."""
