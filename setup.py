"""Builds the compiled parts where a compiler is; the rest of the package's description is in pyproject.toml."""

from setuptools import Extension, setup


def compiled() -> list[Extension]:
    """Returns the optional extension modules: without Cython, NumPy or a compiler the library runs in pure Python."""
    try:
        import numpy
        from Cython.Build import cythonize
    except ImportError:
        return []
    stepping = Extension(
        "headrace._native.stepping",
        ["headrace/_native/stepping.pyx"],
        include_dirs=[numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=["-O3"],
        optional=True,
    )
    modules: list[Extension] = cythonize([stepping], build_dir="build")
    return modules


setup(ext_modules=compiled())
