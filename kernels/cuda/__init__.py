"""The backend "cuda": CUDA C++ on NVIDIA GPUs."""
