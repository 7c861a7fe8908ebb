"""The command as a user types it, on the tiny models of assets/."""
