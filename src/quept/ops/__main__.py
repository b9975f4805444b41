"""`python -m quept.ops`: which kernels run here, and why."""

from quept.ops import describe

if __name__ == "__main__":
    print(describe())
