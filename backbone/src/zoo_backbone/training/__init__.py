"""The backbone's training: data, optimizer, loop."""
