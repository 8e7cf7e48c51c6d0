"""What a plan may choose: sites in groups, what is decided together, formats, layouts, and what stays fixed."""
