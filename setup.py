"""Builds the compiled parts where a compiler is; the rest of the package's description is in pyproject.toml."""

from setuptools import Extension, setup


def compiled() -> list[Extension]:
    """Returns the optional extension modules: without Cython, NumPy or a compiler the library runs in pure Python."""
    try:
        import numpy
        from Cython.Build import cythonize
    except ImportError:
        return []
    modules = [
        Extension(
            f"headrace._native.{name}",
            [f"headrace/_native/{name}.pyx"],
            include_dirs=[numpy.get_include(), "headrace/_native"],
            depends=[f"headrace/_native/{name}" for name in ("gradients.h", "kernels.h", "networks.pxi")],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
            # Comparisons of numbers count as free of side effects, or loops with limits are not vectorized.
            extra_compile_args=["-O3", "-fno-trapping-math"],
            optional=True,
        )
        for name in ("acting", "batch", "learning", "stepping", "waiting")
    ]
    built: list[Extension] = cythonize(modules, build_dir="build")
    return built


setup(ext_modules=compiled())
