"""How a step is carried out: attempts, plans, progress, stopping, devices, child processes, what is worth a retry."""
