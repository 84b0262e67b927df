"""What a run reports: metrics, tables, figures and files."""
