"""Graph rules: one a file, named after its code.

What a larger rule finds has a module for each kind of cause in ``causes``; modules with an underscore hold what is
known of sites, as several rules or causes ask.
"""
