# The CUDA translation units of libpathways, relative to this directory: the one list of every build.
set(PATHWAYS_CUDA_SOURCES
)
