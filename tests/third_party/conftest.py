collect_ignore_glob = ["projects/*"]  # scripts that a test runs where their data are
