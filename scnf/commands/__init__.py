"""The commands of `scnf`, one module each: a function (words) -> exit code that parses, calls and prints."""
