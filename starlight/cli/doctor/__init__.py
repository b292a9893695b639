"""`starlight doctor`: is this machine ready? `checks` judges, `command` prints."""
