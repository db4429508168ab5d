"""`robustcli certify`: what is proven of a model, beside what attacks break of the same samples."""
