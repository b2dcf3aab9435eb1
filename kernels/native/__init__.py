"""The backend "native": C++ on the CPU."""
