"""Everything of a run except images: errors, options, recipes, machine, processes, signals."""
