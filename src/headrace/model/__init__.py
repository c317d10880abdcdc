"""The broker's vocabulary: ids, specs, errors, limits, ports and configuration as frozen values. Imports nothing but msgspec and the standard
library's pure parts."""
