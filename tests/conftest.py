"""What all tests share. Each kind has its own folder: unit, model, crash, format, native, mount."""

import hypothesis

# No deadline per example: these machines are shared, and time limits are pytest-timeout's. What fails is printed so
# that it can be run again.
hypothesis.settings.register_profile("cowfs", deadline=None, print_blob=True)
hypothesis.settings.load_profile("cowfs")
