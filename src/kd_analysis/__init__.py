"""Pictures and reports of finished runs."""
