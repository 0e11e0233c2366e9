"""The plugin's parts, in this process."""
