"""What only prompts in front of the text need (`placement="prepend"`)."""
