"""The history: fold, migrations, recorder, restore."""
