/* mpmmu: runs a bundle of mpmmu-rt on the processor, without Python.
 *
 *     grey uint8 [H, W] - mpmmu_preprocess -> pixels uint8 [1, S, S] - mpmmu_predict -> probability, embedding
 *
 * A bundle is opened as Python's `Bundle.open` does it: the schema, and size and SHA-256 of every file, before anything
 * is deserialised; the same refusals in the same words. Nothing falls back to another engine or precision.
 *
 * A function that can fail returns a status; `mpmmu_last_error` and `mpmmu_last_hint` tell of the last failure of the
 * calling thread. No C++ exception crosses this border. Any number of threads may share a model; only `mpmmu_close`
 * must be the last call. A model belongs to the process that opened it: in a fork it is refused, and closing it there
 * frees nothing. Text is UTF-8 and ends with 0.
 *
 * However the calling thread rounds, and whatever it makes of the smallest numbers (fesetround, -ffast-math), in
 * here it computes as every C program begins, and it finds its own again.
 *
 * Opening sets ORT_DISABLE_TELEMETRY, unless it is set, and thereby changes the environment, which another thread must
 * not read or change at that time (setenv(3)): set it yourself, or open the first model before there are threads.
 *
 * Structs begin with `size`, which the caller sets to their `sizeof`: a later version of the library takes what an
 * earlier header knew, and an earlier library refuses a larger struct. Fields are only ever added at the end.
 *
 * For research and engineering; not a medical device, not for diagnosis.
 */
#ifndef MPMMU_H
#define MPMMU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef MPMMU_API
#define MPMMU_API __attribute__((visibility("default")))
#endif

/* Rises when a program that was built with an earlier header would no longer run. */
#define MPMMU_ABI_VERSION 1

/* The errors of mpmmu_rt (errors.py), by the same reasons. */
typedef enum mpmmu_status {
  MPMMU_OK = 0,
  MPMMU_USAGE_ERROR = 1,     /* an argument that makes no sense */
  MPMMU_BUNDLE_ERROR = 2,    /* no bundle, of another version, sealed without sense, or not readable here */
  MPMMU_DIGEST_MISMATCH = 3, /* a file is not the one that was exported: altered, missing, linked, added */
  MPMMU_PIXELS_ERROR = 4,    /* pixels or a grey image that can't be taken */
  MPMMU_MISSING_LIBRARY = 5, /* the engine's library is not here, or can't be loaded */
  MPMMU_ENGINE_ERROR = 6,    /* an engine that can't run here, or failed while running */
  MPMMU_ANSWER_ERROR = 7,    /* an engine that ran, and gave no number for some of the cases */
  MPMMU_PARITY_ERROR = 8,    /* this machine does not compute what the export proved */
  MPMMU_OUT_OF_MEMORY = 9,
  MPMMU_INTERNAL_ERROR = 10  /* a defect of this library */
} mpmmu_status;

typedef struct mpmmu_model mpmmu_model;

typedef struct mpmmu_options {
  size_t size;               /* sizeof(mpmmu_options) */
  const char *target;        /* `onnxruntime:fp32` or NULL; `openvino:fp32`, `:bf16`, `:int8`, `:int8-bf16` */
  const char *onnxruntime;   /* path of libonnxruntime.so; NULL: $MPMMU_ONNXRUNTIME, else where the loader looks */
  const char *openvino;      /* path of libopenvino_c.so; NULL: $MPMMU_OPENVINO, else where the loader looks */
  uint32_t threads;          /* 0: as many as this process may use (affinity, cgroup, OMP_NUM_THREADS) */
} mpmmu_options;

/* How grey becomes pixels. Part of the model: take it from `mpmmu_info`. */
typedef struct mpmmu_preprocessing {
  uint32_t side;     /* S, 1 to 4096 */
  uint32_t pad;      /* 1: keep the aspect ratio and pad with black, centred; 0: fill the square */
  uint32_t physical; /* 1: "keep" is the ratio of what is shown, by pixel_aspect; 0: that of rows and columns */
} mpmmu_preprocessing;

/* Texts belong to the model and live as long as it does. */
typedef struct mpmmu_info {
  size_t size;             /* sizeof(mpmmu_info) */
  const char *name;        /* what the model is called */
  const char *digest;      /* SHA-256 of bundle.json, which holds the digests of all the rest; 64 hexadecimal digits */
  const char *target;      /* what runs */
  const char *head_target; /* where the stacking head runs: on ONNX Runtime where that is here */
  const char *engine;      /* version of the engine's library */
  uint32_t trained;        /* 0: the reference model, whose probabilities mean nothing */
  uint32_t threads;
  double threshold;        /* a probability at or above it is called malignant */
  mpmmu_preprocessing preprocessing;
  size_t embedding_width;  /* D */
  size_t learners;         /* base learners of the stacking head; 0 where it tells none */
  const char *warning;     /* what speaks against its use, to be said with every answer: it is untrained, or its INT8
                              was calibrated on phantoms; "" where nothing does */
} mpmmu_info;

/* Where to write; NULL for what is not wanted. */
typedef struct mpmmu_outputs {
  size_t size;             /* sizeof(mpmmu_outputs) */
  float *probability;      /* [cases]: that the lesion is malignant */
  uint8_t *malignant;      /* [cases]: 1 where the probability reaches the bundle's threshold */
  float *base_probability; /* [cases, learners] */
  float *embedding;        /* [cases, embedding_width] */
} mpmmu_outputs;

/* What `mpmmu_self_test` measured; a difference that is no number is infinite. */
typedef struct mpmmu_self_test_result {
  size_t size;               /* sizeof(mpmmu_self_test_result) */
  size_t cases;              /* golden cases of the bundle */
  double embedding;          /* max |d| / max |golden| of the embedding */
  double embedding_limit;
  double probability;        /* max |dp| to the original's */
  double probability_limit;
  size_t flipped;            /* cases whose decision differs and may not, together or alone */
  double batch;              /* max |dp| of a case in a batch to the same case alone */
  double batch_limit;
  double proven_embedding;   /* INT8: to what the same graphs said at export; else 0 */
  double proven_probability;
} mpmmu_self_test_result;

/* The MPMMU_ABI_VERSION that the library was built with. */
MPMMU_API uint32_t mpmmu_abi_version(void);

/* Opens and checks a bundle and loads no engine: MPMMU_BUNDLE_ERROR, MPMMU_DIGEST_MISMATCH. */
MPMMU_API mpmmu_status mpmmu_check(const char *folder);

/* Opens, checks and loads a bundle. options: NULL for the defaults. *model is NULL where it fails. */
MPMMU_API mpmmu_status mpmmu_open(const char *folder, const mpmmu_options *options, mpmmu_model **model);

MPMMU_API mpmmu_status mpmmu_get_info(const mpmmu_model *model, mpmmu_info *info);

/* Fits grey, uint8 [height, width] in display range (0 black), into the model's square: pixels, uint8 [1, S, S].
 * pixel_aspect: the height of a pixel over its width, 1.0 where it is square. To the bit what Python makes. What is a
 * single grey value, or is one to the model, is refused (MPMMU_PIXELS_ERROR): beside its padding nobody would see it.
 * Where it fails, pixels are black, unless `how` is NULL or has no such side. */
MPMMU_API mpmmu_status mpmmu_preprocess(const mpmmu_preprocessing *how, const uint8_t *grey, size_t height,
                                        size_t width, double pixel_aspect, uint8_t *pixels);

/* mammography, ultrasound: pixels uint8 [cases, 1, S, S]; row i of both is the same patient. A case whose images are the
 * same, or one of which is a single grey value, is refused (MPMMU_PIXELS_ERROR). Where it fails, every
 * probability and embedding is NaN and no case is called anything: `malignant` is 255. But nothing is written where
 * the library can't know how much room there is: for cases beyond 1048576, for outputs of a size that it does not know,
 * and, without a model, to base_probability and embedding. */
MPMMU_API mpmmu_status mpmmu_predict(mpmmu_model *model, const uint8_t *mammography, const uint8_t *ultrasound,
                                     size_t cases, const mpmmu_outputs *outputs);

/* What is to be said against one pair of images, pixels uint8 [1, S, S] each, in the words of Python's doors: that they
 * look swapped, or that one is unlike those that the model has learnt from, an inverted one say; "" where nothing is, or
 * the bundle does not know how its images look. Say it with the answer. *warning is NULL where this fails, and lasts until
 * the calling thread calls it again. */
MPMMU_API mpmmu_status mpmmu_image_warning(const mpmmu_model *model, const uint8_t *mammography,
                                           const uint8_t *ultrasound, const char **warning);

/* Runs the golden cases of the bundle, together and alone: does this machine compute what the export proved?
 * MPMMU_PARITY_ERROR where it does not, or computes no numbers; MPMMU_DIGEST_MISMATCH where the golden vectors are not
 * those that were opened. result: NULL if only the verdict is wanted. */
MPMMU_API mpmmu_status mpmmu_self_test(mpmmu_model *model, mpmmu_self_test_result *result);

/* What was got and what was expected, and what to do, of the last call of this thread that failed; "" before one. Each
 * text lives until the next call that fails, or the end of the thread. */
MPMMU_API const char *mpmmu_last_error(void);
MPMMU_API const char *mpmmu_last_hint(void);

/* NULL is let be. */
MPMMU_API void mpmmu_close(mpmmu_model *model);

#ifdef __cplusplus
}
#endif

#endif
