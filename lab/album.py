"""
An album of questions and answers: a page to look at and listen to them. It has no script, opens
from disk, and fits a telephone.
"""
import html

from audio import SAMPLE_RATE

HEAD = '''<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Jericho: questions and answers</title>
<style>
  body { font: 16px/1.4 system-ui, sans-serif; max-width: 62rem; margin: 1rem auto;
         padding: 0 .8rem; overflow-wrap: anywhere }
  section { margin: 1.5rem 0; padding: .3rem .8rem; border-left: 5px solid; background: #f6f6f4 }
  .right { border-color: #3a8f5c } .wrong { border-color: #c0392b }
  h2 { font-size: 1.1rem; font-weight: normal }
  b { font-family: ui-monospace, monospace }
  .row { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem 1rem; margin: .8rem 0 }
  .sound { flex: 1 1 14rem; min-width: 0 }
  .picture { flex: 3 1 20rem; min-width: 0; overflow-x: auto }
  audio { display: block; width: 100%; max-width: 22rem; height: 2.5rem; margin-top: .3rem }
  img { display: block; width: 100% }
</style>
<h1>Questions and answers in tones</h1>
'''
ROW = '''<div class="row">
<div class="sound">{label}: <b>{text}</b><audio controls src="{name}.wav"></audio></div>
<div class="picture"><img src="{name}.png" alt="spectrogram" style="min-width: {width}rem"></div>
</div>
'''


def section(verdict, line, rows):
    """One question: right, wrong or unknown; a line about it; and rows of a label, the name of the
    files, the symbols heard and the waveform (S,) -> HTML"""
    text = f'<section class="{verdict}">\n<h2>{html.escape(line)}</h2>\n'
    for label, name, heard, wave in rows:
        width = round(12 * len(wave) / SAMPLE_RATE)
        heard = html.escape(heard) or 'nothing'
        text += ROW.format(label=label, text=heard, name=name, width=width)
    return text + '</section>\n'


def album(sections, last_line):
    """-> the whole page, HTML"""
    return HEAD + ''.join(sections) + f'<p>{html.escape(last_line)}</p>\n'
