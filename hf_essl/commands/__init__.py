"""The commands of `hf-essl`: each parses its options and calls one library function."""
