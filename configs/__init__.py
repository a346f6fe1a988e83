"""Configurations of whole experiments, see `training.config_files`."""
