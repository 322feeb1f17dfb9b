"""Reports: tables and plots of results, for the terminal, as HTML and as files."""
