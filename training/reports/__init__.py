"""Reports for people: tables side by side, plots, and HTML pages that refer to nothing outside themselves."""
