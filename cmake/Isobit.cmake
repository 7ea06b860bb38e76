# Build helpers: flags, one library per folder, one test executable per folder.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
find_program(ISOBIT_CCACHE ccache)
if(ISOBIT_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${ISOBIT_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${ISOBIT_CCACHE})
endif()

# Relative to where the compiler runs, so that a compiler cache knows the object again in another checkout.
file(RELATIVE_PATH ISOBIT_SANITIZERS_IGNORE ${CMAKE_BINARY_DIR} ${PROJECT_SOURCE_DIR}/cmake/sanitizers.ignore)

function(isobit_warnings target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wno-missing-field-initializers
      -Werror -ffp-contract=off>
    # g++ 12 warns of std::string's own code at -O3 (GCC bugs 105329, 105651, 105562).
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict -Wno-maybe-uninitialized>)
  if(ISOBIT_SANITIZE)
    target_compile_options(${target} PRIVATE
      # A pointer that wraps or is null is caught by ASan when it is used; their own checks are two thirds of a vector unit's
      # compile time and a tenth of other code's.
      $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined -fno-sanitize=pointer-overflow,null -fno-sanitize-recover=all
        -fno-omit-frame-pointer>
      $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-fsanitize-ignorelist=${ISOBIT_SANITIZERS_IGNORE}>)
    target_link_options(${target} PRIVATE -fsanitize=address,undefined)
  endif()
  # Where the fuzzer looks for new ground; in all of the code it would cost a seventh of the build's time.
  if(ISOBIT_FUZZ AND target MATCHES "^isobit_(base|weights|text|grammar|server)$|_fuzz$")
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link>)
  endif()
endfunction()

# Code whose speed nobody waits for: less optimised, it compiles in half the time.
function(isobit_quick_compile target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:$<IF:$<BOOL:${ISOBIT_SANITIZE}>,-O0,-O1>>)
endfunction()

# Under ISOBIT_UNITY (most presets) a folder's sources are compiled several at a time, so that big headers are read once.
# Highway's sources, which include themselves once a target, stay alone. Names in a folder's unnamed namespaces must differ.
function(isobit_unity target)
  if(NOT ISOBIT_UNITY)
    return()
  endif()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON)
  get_target_property(sources ${target} SOURCES)
  foreach(source ${sources})
    file(STRINGS ${source} loops REGEX "include \"ops/cpu/simd_targets\\.h\"")
    if(loops)
      set_source_files_properties(${source} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    endif()
  endforeach()
endfunction()

# isobit_library(name [DIR folder] [PUBLIC ...] [PRIVATE ...]): every .cpp directly in src/<folder>.
function(isobit_library name)
  cmake_parse_arguments(ARG "" "DIR" "PUBLIC;PRIVATE" ${ARGN})
  if(NOT ARG_DIR)
    set(ARG_DIR ${name})
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${ARG_DIR}/*.cpp)
  if(sources)
    add_library(isobit_${name} STATIC ${sources})
    target_include_directories(isobit_${name} PUBLIC ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
    target_link_libraries(isobit_${name} PUBLIC ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
    isobit_warnings(isobit_${name})
    isobit_unity(isobit_${name})
  else()
    add_library(isobit_${name} INTERFACE)
    target_include_directories(isobit_${name} INTERFACE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
    target_link_libraries(isobit_${name} INTERFACE ${ARG_PUBLIC} ${ARG_PRIVATE})
  endif()
endfunction()

# How the CUDA kernels cut their work: pure functions, built and tested without CUDA too.
function(isobit_plan_library)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/ops/cuda/*_plan.cpp)
  add_library(isobit_cuda_plan STATIC ${sources})
  target_include_directories(isobit_cuda_plan PUBLIC ${PROJECT_SOURCE_DIR}/src)
  isobit_warnings(isobit_cuda_plan)
endfunction()

function(isobit_cuda_library name)
  cmake_parse_arguments(ARG "" "DIR" "PUBLIC;PRIVATE" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${ARG_DIR}/*.cpp ${PROJECT_SOURCE_DIR}/src/${ARG_DIR}/*.cu)
  list(FILTER sources EXCLUDE REGEX "_plan\\.cpp$")
  add_library(isobit_${name} STATIC ${sources})
  target_include_directories(isobit_${name} PUBLIC ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
  target_link_libraries(isobit_${name} PUBLIC ${ARG_PUBLIC} CUDA::cudart_static PRIVATE ${ARG_PRIVATE})
  # -fmad=false: a multiply and an add fuse only where the contract names an fma.
  target_compile_options(isobit_${name} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false --expt-relaxed-constexpr -Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Werror>)
  set_target_properties(isobit_${name} PROPERTIES CUDA_ARCHITECTURES 90a-real)
  isobit_warnings(isobit_${name})
endfunction()

macro(isobit_find_cuda)
  set(ISOBIT_HAS_CUDA OFF)
  file(GLOB isobit_cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/ops/cuda/*.cu)
  if(NOT ISOBIT_CUDA STREQUAL "off" AND isobit_cuda_sources)
    find_program(ISOBIT_NVCC nvcc HINTS /usr/local/cuda/bin)
    if(ISOBIT_NVCC)
      set(CMAKE_CUDA_COMPILER ${ISOBIT_NVCC})
      set(CMAKE_CUDA_ARCHITECTURES 90a-real)
      enable_language(CUDA)
      # CMake 3.25.1 does not know how nvcc is told C++20.
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
      # For projects of 3.25 on, CMake 3.25.1 marks CUDA::nvToolsExt as deprecated, which CUDA 13 does not have.
      set(CMAKE_MINIMUM_REQUIRED_VERSION 3.24)
      find_package(CUDAToolkit REQUIRED)
      set(CMAKE_MINIMUM_REQUIRED_VERSION 3.25)
      set(ISOBIT_HAS_CUDA ON)
    elseif(ISOBIT_CUDA STREQUAL "on")
      message(FATAL_ERROR "ISOBIT_CUDA=on, but nvcc was not found. Install the CUDA 13 toolkit or put nvcc on the PATH.")
    endif()
  endif()
  if(ISOBIT_HAS_CUDA)
    message(STATUS "isobit: CUDA backend on (${ISOBIT_NVCC})")
  else()
    message(STATUS "isobit: CUDA backend left out (nvcc not found, or ISOBIT_CUDA=off); the CPU backend runs everything")
  endif()
endmacro()

# isobit_test(folder libs...): every .cpp in tests/<folder> becomes one executable test_<folder>. FAST: its own code computes a lot.
function(isobit_test folder)
  cmake_parse_arguments(ARG "FAST" "" "" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${folder}/*.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(test_${folder} ${sources})
  target_include_directories(test_${folder} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(test_${folder} PRIVATE ISOBIT_SOURCE_DIR="${PROJECT_SOURCE_DIR}" ISOBIT_BINARY_DIR="${PROJECT_BINARY_DIR}")
  target_link_libraries(test_${folder} PRIVATE ${ARG_UNPARSED_ARGUMENTS} GTest::gtest GTest::gtest_main)
  isobit_warnings(test_${folder})
  isobit_unity(test_${folder})
  # g++ 12 warns of test fixtures in anonymous namespaces of a unity, and falsely of null.
  target_compile_options(test_${folder} PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-subobject-linkage -Wno-nonnull>)
  if(NOT ARG_FAST)
    isobit_quick_compile(test_${folder})
  endif()
  gtest_discover_tests(test_${folder} TEST_PREFIX "${folder}." DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 600)
endfunction()
