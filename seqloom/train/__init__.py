"""Tasks, the loop, optimizers, schedules, monitors."""
