/* SPDX-License-Identifier: MPL-2.0
 *
 * Words with their times, out of the metas on text buffers: read_meta FILE
 *
 *   cc read_meta.c -o read_meta $(pkg-config --cflags --libs gstreamer-1.0)
 *
 * No header of scribe is needed: the meta is a GstStructure. The plugin is found by GST_PLUGIN_PATH.
 */
#include <gst/gst.h>

static void
show (GstElement *sink, GstBuffer *buffer, GstPad *pad, gpointer data)
{
  GstCustomMeta *meta = gst_buffer_get_custom_meta (buffer, "ScribeTranscriptMeta");
  const GValue *words;

  (void) sink, (void) pad, (void) data;
  if (meta == NULL)
    return;
  words = gst_structure_get_value (gst_custom_meta_get_structure (meta), "words");
  if (words == NULL || !GST_VALUE_HOLDS_ARRAY (words))
    return;
  for (guint i = 0; i < gst_value_array_get_size (words); i++) {
    const GstStructure *word = gst_value_get_structure (gst_value_array_get_value (words, i));
    const gchar *text = gst_structure_get_string (word, "text");
    guint64 start = 0, end = 0;
    gdouble confidence = 0;
    gchar *bare;

    if (text == NULL
        || !gst_structure_get_uint64 (word, "start", &start)
        || !gst_structure_get_uint64 (word, "end", &end)
        || !gst_structure_get_double (word, "confidence", &confidence))
      continue;
    bare = g_strstrip (g_strdup (text));
    g_print ("%.3f\t%.3f\t%.2f\t%s\n", start / 1e9, end / 1e9, confidence, bare);
    g_free (bare);
  }
}

int
main (int argc, char **argv)
{
  GError *error = NULL;
  GstElement *pipeline, *source, *sink;
  GstBus *bus;
  GstMessage *message;
  int status = 0;

  gst_init (&argc, &argv);
  if (argc != 2) {
    g_printerr ("usage: %s FILE\n", argv[0]);
    return 2;
  }
  pipeline = gst_parse_launch ("filesrc name=source ! decodebin ! scribetranscriber ! "
      "fakesink name=sink sync=false signal-handoffs=true", &error);
  if (error != NULL) {
    g_printerr ("%s\n", error->message);
    g_clear_error (&error);
    return 1;
  }
  source = gst_bin_get_by_name (GST_BIN (pipeline), "source");
  g_object_set (source, "location", argv[1], NULL);
  sink = gst_bin_get_by_name (GST_BIN (pipeline), "sink");
  g_signal_connect (sink, "handoff", G_CALLBACK (show), NULL);

  gst_element_set_state (pipeline, GST_STATE_PLAYING);
  bus = gst_element_get_bus (pipeline);
  message = gst_bus_timed_pop_filtered (bus, GST_CLOCK_TIME_NONE, GST_MESSAGE_ERROR | GST_MESSAGE_EOS);
  if (GST_MESSAGE_TYPE (message) == GST_MESSAGE_ERROR) {
    gst_message_parse_error (message, &error, NULL);
    g_printerr ("%s\n", error->message);
    g_clear_error (&error);
    status = 1;
  }
  gst_message_unref (message);
  gst_element_set_state (pipeline, GST_STATE_NULL);
  gst_object_unref (bus);
  gst_object_unref (source);
  gst_object_unref (sink);
  gst_object_unref (pipeline);
  return status;
}
