"""Everything around a run that knows no images: errors, options, recipes, the machine, processes, interruption."""
