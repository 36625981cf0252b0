# SPDX-License-Identifier: Apache-2.0
#[=======================================================================[.rst:
FindNCCL
--------

Finds NCCL's header. The library itself is opened at run time and never linked.

Looks, in this order, into ``NCCL_ROOT`` (variable or environment), ``NCCL_HOME`` and ``CUDA_HOME``
(environment), the system, and the ``nvidia-nccl`` wheel of the Python that is in ``PATH``.

Imported target:   ``NCCL::headers``
Result variables:  ``NCCL_FOUND``, ``NCCL_VERSION``, ``NCCL_INCLUDE_DIRS``
Cache variable:    ``NCCL_INCLUDE_DIR``
#]=======================================================================]

set(_nccl_hints ${NCCL_ROOT} $ENV{NCCL_ROOT} $ENV{NCCL_HOME})
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${_nccl_hints} $ENV{CUDA_HOME} PATH_SUFFIXES include
  DOC "Folder of nccl.h")

# The wheel has no fixed place, so its Python is asked.
if(NOT NCCL_INCLUDE_DIR)
  find_program(_nccl_python NAMES python3 python)
  mark_as_advanced(_nccl_python)
  if(_nccl_python)
    execute_process(
      COMMAND ${_nccl_python} -c "import nvidia.nccl; print(*nvidia.nccl.__path__, sep=';')"
      OUTPUT_VARIABLE _nccl_wheel OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${_nccl_wheel} PATH_SUFFIXES include NO_DEFAULT_PATH)
  endif()
endif()

mark_as_advanced(NCCL_INCLUDE_DIR)

if(NCCL_INCLUDE_DIR)
  file(STRINGS "${NCCL_INCLUDE_DIR}/nccl.h" _nccl_lines
    REGEX "^#define NCCL_(MAJOR|MINOR|PATCH) +[0-9]+")
  foreach(_nccl_part MAJOR MINOR PATCH)
    string(REGEX REPLACE ".*NCCL_${_nccl_part} +([0-9]+).*" "\\1" _nccl_${_nccl_part} "${_nccl_lines}")
  endforeach()
  set(NCCL_VERSION "${_nccl_MAJOR}.${_nccl_MINOR}.${_nccl_PATCH}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NCCL REQUIRED_VARS NCCL_INCLUDE_DIR VERSION_VAR NCCL_VERSION)

if(NCCL_FOUND)
  set(NCCL_INCLUDE_DIRS "${NCCL_INCLUDE_DIR}")
  if(NOT TARGET NCCL::headers)
    add_library(NCCL::headers INTERFACE IMPORTED)
    set_target_properties(NCCL::headers PROPERTIES
      INTERFACE_INCLUDE_DIRECTORIES "${NCCL_INCLUDE_DIR}"
      INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${NCCL_INCLUDE_DIR}")
  endif()
endif()
