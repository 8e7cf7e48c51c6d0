"""amptune tune: the search for the fastest valid plan, by measurement."""
