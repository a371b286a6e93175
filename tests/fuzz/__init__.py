"""Whatever strangers send is read or refused: never a crash, another meaning, or another error.

In the suite hypothesis tries some hundred inputs of each kind. ``make fuzz`` runs the same tests
under atheris, which looks for inputs that reach new code: ``python -m tests.fuzz NAME SECONDS``.
"""
