"""Many runs on one page: found below folders, gathered into tables, and shown with filters, here or in W&B."""
