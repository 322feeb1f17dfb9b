"""Index plug-ins, one file each."""
