"""One registered tracker per file; `robustcli.reporting.tracking` hands them what a training finds."""
