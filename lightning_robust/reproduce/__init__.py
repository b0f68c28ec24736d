"""One file a paper's artifact: data, settings, run, table and plot."""
