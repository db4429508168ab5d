"""One function per subcommand of `robustcli guard`, and the demo of it."""
