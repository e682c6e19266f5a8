/* Decides one pair of images: decide BUNDLE MAMMOGRAM.pgm ULTRASOUND.pgm
 *
 * Exit code 0: the probability and the decision are on stdout. 1: an error is on stderr. 3: the bundle is not the one
 * that was exported, or this machine does not compute what was proven; nothing may be decided with it. */
#include <ctype.h>
#include <mpmmu.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(mpmmu_status status) {
  fprintf(stderr, "error: %s\nhint: %s\n", mpmmu_last_error(), mpmmu_last_hint());
  return status == MPMMU_DIGEST_MISMATCH || status == MPMMU_PARITY_ERROR ? 3 : 1;
}

/* A raw grey image: binary PGM (P5) of 8 bits, without comments. The caller frees it; NULL: it is none. */
static unsigned char *read_grey(const char *path, size_t *height, size_t *width) {
  unsigned char *grey = NULL;
  int end = 0; /* of the header: 0 where it does not say 255 */
  FILE *file = fopen(path, "rb");
  if (file && fscanf(file, "P5 %zu %zu 255%n", width, height, &end) == 2 && end && isspace(fgetc(file)) && *height &&
      *width && *height <= 200000000 / *width && (grey = malloc(*height * *width)) &&
      fread(grey, 1, *height * *width, file) != *height * *width) {
    free(grey);
    grey = NULL;
  }
  if (file) fclose(file);
  if (!grey) fprintf(stderr, "error: %s is no 8-bit binary PGM, expected one\nhint: convert %s\n", path, path);
  return grey;
}

int main(int count, char **arguments) {
  if (count != 4) return fprintf(stderr, "usage: decide BUNDLE MAMMOGRAM.pgm ULTRASOUND.pgm\n"), 2;
  mpmmu_model *model = NULL;
  mpmmu_options options = {.size = sizeof options, .target = getenv("MPMMU_TARGET")};
  mpmmu_status status = mpmmu_open(arguments[1], &options, &model);
  if (status == MPMMU_OK) status = mpmmu_self_test(model, NULL);
  mpmmu_info info = {.size = sizeof info};
  if (status == MPMMU_OK) status = mpmmu_get_info(model, &info);
  unsigned char *pixels[2] = {NULL, NULL};
  for (int i = 0; i < 2 && status == MPMMU_OK; ++i) {
    size_t height = 0, width = 0;
    unsigned char *grey = read_grey(arguments[2 + i], &height, &width);
    if (!grey) return 1;
    pixels[i] = malloc((size_t)info.preprocessing.side * info.preprocessing.side);
    status = mpmmu_preprocess(&info.preprocessing, grey, height, width, 1.0, pixels[i]);
    free(grey);
  }
  float probability = 0;
  unsigned char malignant = 0;
  mpmmu_outputs outputs = {.size = sizeof outputs, .probability = &probability, .malignant = &malignant};
  if (status == MPMMU_OK) status = mpmmu_predict(model, pixels[0], pixels[1], 1, &outputs);
  const char *against = "";
  if (status == MPMMU_OK) status = mpmmu_image_warning(model, pixels[0], pixels[1], &against);
  const int code = status == MPMMU_OK ? 0 : failed(status);
  if (code == 0) printf("%.9g %s\n", (double)probability, malignant ? "malignant" : "benign");
  if (code == 0 && *info.warning) fprintf(stderr, "warning: %s\n", info.warning);
  if (code == 0 && *against) fprintf(stderr, "warning: %s\n", against);
  for (int i = 0; i < 2; ++i) free(pixels[i]);
  mpmmu_close(model);
  return code;
}
