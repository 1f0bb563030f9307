"""A training over several processes: how they are arranged, what each holds, and how the whole is put together."""
