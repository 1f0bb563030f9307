"""What every floor stands on: configuration, checkpoints, seeds, devices, logs, errors."""
