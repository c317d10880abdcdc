"""One stream partition as a machine: what its readers may read now, how far its durable cursors have come, what retention asks for. Records themselves live elsewhere."""
