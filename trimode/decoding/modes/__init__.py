"""The modes: one file each, a generator of spans and its `ModeSpec`."""
