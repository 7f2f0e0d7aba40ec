"""What all commands share: options, conditions on metadata, output to a terminal or a program."""
