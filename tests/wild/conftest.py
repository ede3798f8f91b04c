"""The modules need packages that are not in the environment of the tests."""

collect_ignore_glob = ["modules/*"]
